"""The host reads a bundle and its wheels; it never runs them. What could run on import, on install or at start-up is tried here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cloche.db.audit_log import AuditLog
from cloche.domain.egress import PlatformEgress
from cloche.registry.catalog import Catalog
from cloche.registry.store import BundleStore
from cloche.services.admission import admit
from cloche.services.asked import Defaults
from cloche.services.egress import EgressService
from cloche.services.plugins import PluginService
from cloche.services.sealing import JobVault
from tests.support.plugins import lock_for, make_wheel, write_bundle

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

# In a process of its own, so that an audit hook sees every piece of code that is executed from the first line on.
PROBE = """
import sys
seen = []
def hook(event, arguments):
    if event == "exec":
        seen.append(str(arguments[0].co_filename))
    elif event == "import":
        seen.append(str(arguments[0]) + " " + str(arguments[1]))
sys.addaudithook(hook)
import json
from pathlib import Path
from cloche.registry.catalog import Catalog
from cloche.registry.payload import apply_defaults, validate_payload
from cloche.registry.store import BundleStore
folder, home, python = sys.argv[1:]
catalog = Catalog([Path(folder)])
bundle = catalog.resolve("snare", None)
store = BundleStore(Path(home), catalog)
store.freeze(bundle)
site = store.wheels(bundle, python)
problems = validate_payload(bundle.manifest.params, apply_defaults(bundle.manifest.params, {}))
json.dump({"seen": seen, "modules": sorted(sys.modules), "path": sys.path, "site": str(site), "problems": len(problems)}, sys.stdout)
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "somebody-ran-me"


@pytest.fixture
def folder(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle in which everything writes the marker when it is run."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    trap = f"open({str(marker)!r}, 'a').write(__name__)\n"
    line = f"import os; open({str(marker)!r}, 'a').write('pth')\n"
    names = ("conftest.py", "setup.py", "sitecustomize.py", "usercustomize.py")
    wheel = make_wheel(
        index,
        "snared",
        files={
            "snared/__init__.py": trap,
            "snared.pth": line,
            "snared-1.0.data/purelib/second.pth": line,
            "snared-1.0.data/scripts/snared": "#!python\n" + trap,
            "snared-1.0.dist-info/entry_points.txt": "[console_scripts]\nsnared = snared:run\n[pytest11]\nsnared = snared\n",
            **dict.fromkeys(names, trap),
        },
    )
    files = {
        "__init__.py": trap,
        "snare.pth": line,
        "tests/__init__.py": trap,
        "tests/test_snare.py": trap,
        "tests/conftest.py": trap,
        "json.py": trap,
        "cloche/__init__.py": trap,
        "wheels.lock": lock_for(wheel),
        **dict.fromkeys(names, trap),
    }
    more = (
        '[params]\ntype = "object"\nadditionalProperties = false\nproperties = { n = { type = "integer", default = 1 } }\n'
        '[requires]\npython = ["snared==1.0"]\n'
    )
    write_bundle(tmp_path / "plugins", "snare", code=trap, more=more, files=files)
    return tmp_path / "plugins"


def test_reading_freezing_and_unpacking_run_nothing(folder: Path, marker: Path, tmp_path: Path):
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder), str(home), PYTHON],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder.parent,
    )
    found = json.loads(done.stdout)
    assert not marker.exists()
    assert found["problems"] == 0
    assert [name for name in found["modules"] if "snare" in name] == []
    assert [place for place in found["path"] if str(tmp_path) in place] == []
    assert [code for code in found["seen"] if str(folder) in code or str(home) in code] == []
    site = Path(found["site"]) / "site"
    assert (site / "snared" / "__init__.py").is_file()
    assert list(site.glob("*.pth")) == []


def test_a_submit_runs_nothing(db, admin, tenant: str, folder: Path, marker: Path, tmp_path: Path):
    before = set(sys.modules)
    catalog = Catalog([folder])
    plugins = PluginService(db, catalog, AuditLog(b"k" * 32))
    plugins.sync(tenant)
    defaults = Defaults(max_retries=0, timeout_ms=60_000)
    egress = EgressService(db, AuditLog(b"k" * 32), PlatformEgress())
    vault = JobVault(tmp_path / "keys", db)
    row = db.read(lambda c: admit(c, admin, {"type": "snare", "payload": {"n": 2}}, plugins, egress, defaults, vault))
    store = BundleStore(tmp_path / "home", catalog)
    bundle = store.bundle("snare", row["plugin_version"], row["plugin_digest"])
    assert bundle is not None
    store.freeze(bundle)
    store.wheels(bundle, PYTHON)
    assert not marker.exists()
    assert [name for name in set(sys.modules) - before if "snare" in name] == []


def test_the_trap_itself_works(folder: Path, marker: Path):
    """Were the probe blind, the tests above would say nothing."""
    subprocess.run([sys.executable, str(folder / "snare/1.0.0/plugin.py")], check=True)
    assert marker.read_text() == "__main__"
