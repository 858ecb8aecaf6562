"""The hostile plugin, and the package that it preloads, as the registry would freeze them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cloche.sandboxd import image_parts


def write_package(home: Path, kind: str) -> str:
    """The package for preloading as the registry would unpack a wheel; returns its digest."""
    text = f'KIND = "{kind}"\n'.encode() + (image_parts.probes_folder() / "beforehand.py").read_bytes().replace(
        b"from __future__ import annotations\n", b""
    )
    digest = hashlib.sha256(text).hexdigest()
    folder = home / "wheels" / digest / "site"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "beforehand.py").write_bytes(text)
    return digest


def write_bundle(home: Path) -> str:
    """Freeze the hostile plugin under the home, as the registry would; returns its digest."""
    source = image_parts.probes_folder()
    contents = {f"probes/{path.name}": path.read_bytes() for path in sorted(source.glob("*.py"))}
    contents["plugin.toml"] = (
        b'[plugin]\nname = "probes"\nversion = "1.0.0"\napi = 1\nsummary = "Hostile probes."\nentry = "probes.plugin"\n'
    )
    digest = hashlib.sha256(
        json.dumps(sorted((n, hashlib.sha256(d).hexdigest()) for n, d in contents.items())).encode()
    ).hexdigest()
    for name, data in contents.items():
        path = home / "bundles" / digest / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return digest
