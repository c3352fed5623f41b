"""What runs on the inside: zygotes and the instances they fork.

These modules are mounted into every zygote and run on the function's own interpreter, so they
need nothing but the standard library of CPython 3.9 or newer, and import only each other.
"""
