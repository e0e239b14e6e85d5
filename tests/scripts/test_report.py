"""scripts/report.py, and its page in a real browser."""

import functools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from html_folders import evaluation_of, summary_of, write_run

from segdpo.cli import main

ROOT = Path(__file__).parents[2]
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
LONG = "an-id-that-is-as-long-as-people-make-them-and-has-no-place-to-break_" * 3


@pytest.fixture
def run(tmp_path):
    images = [(LONG, 0.6, 0.5), ("b", 0.5, 0.6)]
    return write_run(tmp_path / "run", summary_of(), evaluation=evaluation_of(), images=images)


def test_a_run_gets_a_page_beside_its_files(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}/report.html\n"
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_several_runs_get_one_page_here(run, tmp_path, monkeypatch):
    other = write_run(tmp_path / "other", summary_of(seed=1), ["loss=dpo", "seed=1"])
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), str(other)]) == 0
    assert "2 of 2 runs" in Path("report.html").read_text()
    assert main(["report", str(tmp_path), "--out", "new/all.html"]) == 0
    assert Path("new/all.html").exists()


def test_a_group_that_is_not_there_is_named(run, tmp_path, capsys):
    assert main(["report", str(tmp_path), str(run.parent), "--dense", "gold", "--out", str(tmp_path / "x.html")]) == 1
    assert "'gold'" in capsys.readouterr().err


def test_twice_gives_the_same_bytes(run):
    pages = [(main(["report", str(run)]), (run / "report.html").read_bytes())[1] for _ in range(2)]
    assert pages[0] == pages[1]


def test_no_run_no_page(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "Expected a run or a sweep" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


@functools.cache
def commands():
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/howto/report.md").read_text(), re.DOTALL)
    return [line.split() for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_document_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "outputs/mine", summary_of(), evaluation=evaluation_of())
    write_run(tmp_path / "outputs/other", summary_of(seed=1), ["loss=dpo", "seed=1"])
    write_run(tmp_path / "multirun/losses/0", summary_of(), ["loss=dpo", "seed=0"])
    for number, cell in enumerate(("dense_gold", "sft")):
        write_run(tmp_path / f"multirun/worth/{number}", summary_of(), [f"+experiment/variant={cell}", "seed=0"])
    ran = [words[2:] for words in commands() if words[:2] == ["segdpo", "report"]]
    assert len(ran) == 4
    for words in ran:
        assert main(["report", *words]) == 0


def browse(page, folder, *options):
    """Open a page in a browser of its own; return the document as it is after scripts ran."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--disable-default-apps", "--no-first-run",
               "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
               f"--user-data-dir={folder / 'profile'}", *options, "--dump-dom", page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def requests_of(log):
    """Return the addresses on the network that pages asked for, by a browser's log; its own business aside."""
    text = log.read_text()
    try:
        events = json.loads(text)["events"]
    except ValueError:  # a browser that was ended early leaves the list open
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    asked = [event.get("params") or {} for event in events]
    asked = [each for each in asked if each.get("initiator", "not an origin") != "not an origin"]
    return {each["url"] for each in asked if re.match(r"(https?|wss?|ftp):", each.get("url", ""))}


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_in_a_browser_nothing_is_asked_for_and_nothing_overflows(run, tmp_path, colours):
    main(["report", str(run)])
    page = (run / "report.html").read_text()
    write_run(tmp_path / "other", summary_of(seed=1), [f"loss=dpo,{LONG}", "seed=1"])
    main(["report", str(run), str(tmp_path / "other"), "--out", str(tmp_path / "both.html")])
    both = (tmp_path / "both.html").read_text()
    asking = page.replace("<body>", '<body><img src="http://127.0.0.1:9/asked.png">')
    asking = asking.replace("http-equiv", "data-off")
    # Frames of the width of a phone, and of a desktop, in a page that may measure them.
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        "<!doctype html><body><script>\n"
        f"const page = {json.dumps(page).replace('<', chr(92) + 'u003c')};\n"
        f"const both = {json.dumps(both).replace('<', chr(92) + 'u003c')};\n"
        f"const asking = {json.dumps(asking).replace('<', chr(92) + 'u003c')};\n"
        """
        for (const [width, source] of [[390, page], [360, page], [1280, page], [390, both], [390, asking]]) {
          const frame = document.createElement("iframe");
          frame.width = width; frame.height = 800; frame.srcdoc = source;
          frame.onload = () => {
            const inside = frame.contentDocument;
            for (const each of inside.querySelectorAll("details")) each.open = true;
            const found = [inside.documentElement.scrollWidth, inside.documentElement.clientWidth,
              inside.querySelectorAll("svg").length];
            document.body.insertAdjacentHTML("beforeend", `<p class="found">${width} ${found.join(" ")}</p>`);
          };
          document.body.append(frame);
        }
        </script>"""
    )
    dark = ["--blink-settings=preferredColorScheme=0"] if colours == "dark" else []
    log = tmp_path / "net.json"
    found = re.findall(r'<p class="found">([\d ]+)</p>', browse(wrapper, tmp_path, f"--log-net-log={log}", *dark))
    measured = {}
    for line in found:
        width, scrolled, shown, pictures = map(int, line.split())
        assert scrolled <= shown <= width, line
        assert pictures > 10
        measured[width] = measured.get(width, 0) + 1
    assert measured == {360: 1, 390: 3, 1280: 1}
    # The one frame that asks shows that asking would be seen.
    assert requests_of(log) == {"http://127.0.0.1:9/asked.png"}
