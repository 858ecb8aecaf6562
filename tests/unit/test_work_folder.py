"""A worker's folder: never removed while its process lives, whatever the database knows of it; removed by the next one afterwards."""

import subprocess
import sys

from cloche.worker.workfolder import WorkFolder, clean

HOLDER = """
import sys, pathlib
from cloche.worker.workfolder import WorkFolder
folder = WorkFolder(pathlib.Path(sys.argv[1]), "holder")
(folder.path / "file").write_text("x")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_living_workers_folder_is_left_alone_and_a_dead_ones_is_not(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        WorkFolder(tmp_path, "second").close()
        assert (tmp_path / "holder" / "file").exists()
        holder.kill()
    third = WorkFolder(tmp_path, "third")
    assert [path.name for path in tmp_path.iterdir()] == ["third"]
    third.close()
    assert list(tmp_path.iterdir()) == []


def test_whoever_outlives_workers_can_clean_up_after_them(tmp_path):
    clean(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        clean(tmp_path)
        assert (tmp_path / "holder" / "file").exists()
        holder.kill()
    clean(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder_is_left_alone(tmp_path):
    (tmp_path / "note").write_text("x")
    (tmp_path / "elsewhere").symlink_to("/etc")
    folder = WorkFolder(tmp_path, "one")
    folder.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "note"]
