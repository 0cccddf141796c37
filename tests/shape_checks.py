"""The checker of signatures that conftest puts into the package's array modules."""

from beartype import BeartypeConf, beartype

# A whole number is fine where a float is declared, as type checkers have it (PEP 484).
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
