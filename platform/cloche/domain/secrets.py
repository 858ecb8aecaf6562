"""Named secrets of a tenant: their names and bounds, and which plugin versions a grant means. Pure.

A job gets a secret when its plugin's manifest names it *and* an administrator of its tenant has granted it to that version. Deny by default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from cloche_guest import job_secrets

MAX_NAMED = job_secrets.MAX_NAMED  # by one plugin version
MAX_VALUE = job_secrets.MAX_VALUE  # bytes of UTF-8
NAME_PATTERN = r"[A-Z][A-Z0-9_]{0,63}"
NAME = re.compile(NAME_PATTERN)
PLUGIN_PATTERN = r"[a-z][a-z0-9_]{0,62}"
MAX_SECRETS = 500  # of one tenant
MAX_GRANTS = 100  # of one secret
MAX_VERSIONS = 200  # characters of a grant's version specifier
MAX_DESCRIPTION = 300
ANY = "*"


class BadGrant(ValueError):
    """What a grant names as versions is no specifier. The message says what to write."""


def parse_versions(text: str) -> str:
    """A grant's versions in their one notation: ``*``, or a PEP 440 specifier.

    Raises:
        BadGrant: it is neither; nothing at all is not taken for everything.
    """
    wanted = "write '==1.2.0', '~=1.2', '>=1,<3', or '*' for every version"
    given = text.strip()
    if given == ANY:
        return ANY
    if not given or len(given) > MAX_VERSIONS:
        raise BadGrant(wanted)
    try:
        return str(SpecifierSet(given))
    except InvalidSpecifier:
        raise BadGrant(f"'{given[:60]}' is no version specifier; {wanted}") from None


def is_granted(grants: Iterable[Mapping[str, Any]], plugin: str, version: str) -> bool:
    """Whether one of the grants (``plugin``, ``versions``) means that version. A pre-release only where the specifier names one, or ``*``."""
    return any(grant["plugin"] == plugin and _means(str(grant["versions"]), version) for grant in grants)


def _means(versions: str, version: str) -> bool:
    return versions == ANY or SpecifierSet(versions).contains(Version(version))
