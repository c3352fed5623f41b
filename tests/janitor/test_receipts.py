"""How receipts are put together and merged."""

from __future__ import annotations

from datetime import timedelta

from mayfly.v1 import janitor_pb2, reclaimer_pb2

from services.janitor.owners import Inventory
from services.janitor.receipts import (
    Ending,
    Found,
    Key,
    merged,
    receipt_name,
    reclaimed_receipt,
    with_findings,
)
from services.janitor.retries import Backoff
from services.janitor.sweep import findings_of
from services.janitor.verify import attribute

SECOND = 1_000_000_000
Resource = reclaimer_pb2.Resource
Outcome = reclaimer_pb2.ReclaimOutcome


def made(*, removed: tuple[str, ...] = (), at: int = 20, verified: bool = True) -> Receipt:
    ending = Ending(Key("deployer", "functions/a", "u"), 10 * SECOND)
    outcome = Outcome(
        name="functions/a", uid="u", removed=[Resource(type=kind, id="1") for kind in removed]
    )
    receipt = reclaimed_receipt(ending, outcome, at * SECOND)
    residue = {} if verified else {"deployer": [Resource(type="mount", id="2", uid="u")]}
    return with_findings(receipt, Found(residue, ["deployer: mounts (3)"]))


Receipt = janitor_pb2.Receipt


def test_the_name_is_that_of_the_thing() -> None:
    assert receipt_name("functions/hello") == "receipts/hello"
    assert receipt_name("builds/8c1f") == "receipts/8c1f"


def test_the_lag_counts_from_the_owners_deadline_and_is_never_negative() -> None:
    ending = Ending(Key("deployer", "functions/a", "u"), 10 * SECOND)
    outcome = Outcome()
    outcome.expire_time.FromSeconds(15)
    assert reclaimed_receipt(ending, outcome, 17 * SECOND).lag.ToSeconds() == 2
    assert reclaimed_receipt(ending, outcome, 14 * SECOND).lag.ToNanoseconds() == 0
    assert reclaimed_receipt(ending, Outcome(), 12 * SECOND).lag.ToSeconds() == 2


def test_two_views_of_one_end_add_up() -> None:
    late = made(removed=("socket", "row"), at=25)
    early = made(removed=("process", "socket"), at=20)
    for one, other in ((early, late), (late, early)):
        both = merged(one, other)
        assert sorted(r.type for r in both.removed) == ["process", "row", "socket"]
        assert both.reclaim_time.ToSeconds() == 20
        assert both.lag.ToSeconds() == 10
        assert both.verified


def test_a_look_that_found_nothing_stands() -> None:
    clean, dirty = made(), made(verified=False)
    for one, other in ((clean, dirty), (dirty, clean)):
        both = merged(one, other)
        assert both.verified
        assert not both.residue
    assert not merged(dirty, dirty).verified


def test_a_second_life_has_a_receipt_of_its_own() -> None:
    first, second = made(removed=("a",), at=20), made(removed=("b",), at=40)
    second.create_time.FromSeconds(30)
    assert [r.type for r in merged(first, second).removed] == ["b"]


def test_what_stays_on_purpose_is_no_residue() -> None:
    receipt = made()
    receipt.kept.add(type="environment", id="77ab")
    answers = {
        "builder": Inventory([Resource(type="environment", id="77ab", uid="u")], ["dirs (1)"]),
        "deployer": Inventory([Resource(type="socket", id="/s", uid="u"), Resource(uid="")], []),
        "other": None,
    }
    found = attribute(answers, [receipt])["u"]
    assert [r.type for r in found.residue] == ["socket"]
    assert list(found.residue_by_owner) == ["deployer"]
    assert list(found.looked_at) == ["builder: dirs (1)"]
    assert list(found.unreachable) == ["other"]
    assert not found.clean


def test_pauses_double_up_to_a_bound() -> None:
    backoff = Backoff(timedelta(milliseconds=50), timedelta(seconds=1))
    assert [backoff.pause(n) // 1_000_000 for n in (0, 1, 2, 3, 7, 10_000)] == [
        50,
        50,
        100,
        200,
        1000,
        1000,
    ]


def test_an_owner_that_answers_too_little_is_not_taken_at_its_word() -> None:
    orphans = [Resource(type="directory", id="/a"), Resource(type="directory", id="/b")]
    findings = findings_of(orphans, [Outcome(result=Outcome.RESULT_RECLAIMED)])
    assert [f.removed for f in findings] == [True, False]
    assert findings[1].error == "no outcome"
