"""Ways to build, one folder each, behind `base.Backend`."""
