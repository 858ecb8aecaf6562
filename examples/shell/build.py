"""Makes an image that holds a shell and nothing else, loads it into the engine, and writes the plugin that runs in it.

    python3 examples/shell/build.py FOLDER

The shell is this machine's own with the libraries it needs, so no registry is asked. The image tar has fixed dates: the same shell gives the
same image id on every engine. FOLDER becomes one for CLOCHE_PLUGIN_PATH: FOLDER/shell_grep/1.0.0/.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHELL = Path("/bin/sh")
DATE = 1_577_836_800  # 2020-01-01
LABELS = {"org.cloche.plugin-image": "1"}  # without it no plugin may start the image
TAG = "cloche-example-shell:1"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def shell_files() -> dict[str, bytes]:
    """The shell, its libraries and its loader, each by the path where it is looked for."""
    listed = subprocess.run(["ldd", str(SHELL.resolve())], capture_output=True, text=True, check=True).stdout
    paths = {"/bin/sh", *re.findall(r"(/\S+) \(0x", listed)}
    return {path: Path(path).resolve().read_bytes() for path in paths}


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar of these files, the same bytes every time; folders are made by who unpacks it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, data in sorted(files.items()):
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode, entry.mtime = len(data), 0o755, DATE
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def image_of(layer: bytes, config: dict[str, object] | None = None, tag: bool = True) -> tuple[str, bytes]:
    """The image's id (its config digest) and the tar that ``docker load`` takes. ``config``: more than the label.

    ``tag``: for people, and so that ``docker image prune`` leaves it alone. It is no part of the id.
    """
    whole = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "config": {"Labels": LABELS, **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    text = json.dumps(whole, sort_keys=True).encode()
    digest = hashlib.sha256(text).hexdigest()
    manifest = [{"Config": f"{digest}.json", "RepoTags": [TAG] if tag else None, "Layers": ["layer.tar"]}]
    files = {f"{digest}.json": text, "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()}
    return f"sha256:{digest}", tar_of(files)


def write_plugin(folder: Path, image: str) -> Path:
    """The plugin's files, with the image's id in its manifest; returns the version's folder."""
    version = folder / "shell_grep" / "1.0.0"
    version.mkdir(parents=True, exist_ok=True)
    for source in (HERE / "shell_grep").iterdir():
        (version / source.name).write_text(source.read_text("utf-8").replace("@IMAGE@", image), "utf-8")
    return version


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    image, tar = image_of(tar_of(shell_files()))
    subprocess.run(["docker", "load", "--quiet"], input=tar, check=True)
    print(f"plugin: {write_plugin(Path(sys.argv[1]), image)}\nimage:  {image}")


if __name__ == "__main__":
    main()
