"""What is there, found by label, whatever the database says."""

from __future__ import annotations

from services.deployer.drivers.base import DriverUnavailable, Resource, still_there
from services.deployer.drivers.cluster import names
from services.deployer.drivers.cluster.world import World, resource_of, translated


async def list_resources(world: World) -> list[Resource]:
    """All objects of functions of this installation; asked for anew, not remembered.

    Raises DriverUnavailable.
    """
    found: list[Resource] = []
    chosen = names.selector(world.settings)
    with translated():
        for kind in world.all_kinds:
            objects = await world.cluster.list(kind, world.settings.namespace, chosen)
            found += [resource_of(each) for each in objects]
    return found


async def remove_resource(world: World, resource: Resource) -> None:
    """Delete one object that `list_resources` found. Raises DriverUnavailable.

    An object's function is removed as a whole: its pods would come again, and none of it is of use
    without the rest.
    """
    if resource.uid is not None:
        removed = await world.remove([resource.uid])
        if left := still_there(removed[resource.uid]):
            raise DriverUnavailable(left)
