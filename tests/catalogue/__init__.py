"""Training steps that people shipped: faulty ones, each with the rule that must speak of it, and
healthy twins, of which no rule may say anything at all.

`python -m tests.catalogue` prints the table of both.
"""
