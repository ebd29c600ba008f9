"""The exercises' checks: one module per lecture (``e02`` ...), built on ``core``.

Only exercise notebooks import these; no other room does.
"""
