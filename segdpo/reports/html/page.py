"""The HTML report: one file, no scripts, no requests."""

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from segdpo.reports.html.files import RunFiles, is_run, natural, read_files
from segdpo.reports.html.run import view_of
from segdpo.reports.html.sweep import sweep_view

LIGHT = """
--paper: #ffffff; --raised: #f5f6f7; --ink: #1d2329; --muted: #5d6873; --line: #e0e4e8;
--better: #0a7a4f; --worse: #b8321f; --open: #5d6873; --unknown: #8a6400;
--c0: #0b66b0; --c1: #c4500c; --c2: #0a7f5a; --c3: #94488f; --c4: #a67400; --c5: #4f5b66; --c6: #117f9c; --c7: #85543d;
"""
DARK = """
--paper: #14181b; --raised: #1d2226; --ink: #e5e8ea; --muted: #9ba6b0; --line: #30373d;
--better: #4cc38f; --worse: #f2806d; --open: #9ba6b0; --unknown: #dcb04a;
--c0: #62b3f2; --c1: #f08f52; --c2: #45c196; --c3: #d397ce; --c4: #dfb142; --c5: #a9b3bd; --c6: #5cc6e2; --c7: #cb9d84;
"""
NAMES = ("better", "worse", "open", "unknown", "muted", "ink", *(f"c{k}" for k in range(8)))
STYLE = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
{" ".join(f".{name} {{ color: var(--{name}); }}" for name in NAMES)}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; }}
body {{ margin: 0 auto; max-width: 1120px; padding: 2.5rem clamp(.75rem, 3vw, 2rem) 5rem; background: var(--paper);
color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; margin: 0; font-weight: 650; letter-spacing: -.01em; }}
h2 {{ font-size: 1.15rem; margin: 3rem 0 .6rem; font-weight: 650; }}
h3 {{ font-size: 1rem; margin: 1.6rem 0 .4rem; font-weight: 600; }}
h1, h2, h3, p, li, dd, figcaption, summary {{ overflow-wrap: anywhere; }}
p {{ margin: .4rem 0; max-width: 72ch; }}
small, .note {{ color: var(--muted); font-size: .86rem; }}
.where {{ color: var(--muted); margin: .2rem 0 1.6rem; }}
.verdict {{ border-left: 4px solid currentColor; padding: .1rem 0 .1rem 1rem; margin: 0; }}
.verdict p {{ color: var(--ink); font-size: 1.06rem; margin: .1rem 0; }}
.verdict strong {{ font-size: 1.35rem; line-height: 1.3; font-weight: 650; display: block; }}
.missing {{ background: var(--raised); border-radius: 8px; padding: .8rem 1.1rem; margin: 1.6rem 0 0; }}
.missing h2 {{ margin: 0; font-size: 1rem; color: var(--unknown); }}
.missing ul {{ margin: .3rem 0 0; padding-left: 1.1rem; font-size: .93rem; }}
.scroll {{ overflow-x: auto; margin: .6rem 0; }}
table {{ border-collapse: separate; border-spacing: 0; font-size: .93rem; min-width: 100%;
font-variant-numeric: tabular-nums; }}
th, td {{ padding: .42rem .8rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
white-space: nowrap; }}
th {{ font-weight: 500; color: var(--muted); font-size: .86rem; }}
tbody th {{ color: var(--ink); font-weight: 500; font-size: .93rem; }}
th:first-child {{ text-align: left; position: sticky; left: 0; background: var(--paper); padding-left: 0;
min-width: 7.5rem; white-space: normal; overflow-wrap: anywhere; }}
th:last-child, td:last-child {{ padding-right: .2rem; }}
td small {{ display: block; font-size: .8rem; }}
td.left {{ text-align: left; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr));
gap: 1.6rem 1.5rem; margin-top: .8rem; }}
figure {{ margin: 0; min-width: 0; }}
figcaption {{ font-size: .9rem; font-weight: 550; margin-bottom: .2rem; }}
figure > small {{ display: block; padding-left: .2rem; }}
figure > svg {{ display: block; width: 100%; height: auto; }}
svg text {{ font-size: 11px; fill: var(--muted); font-variant-numeric: tabular-nums; }}
svg text[class] {{ fill: currentColor; }}
svg .rule {{ color: var(--line); }} svg .grid {{ stroke: var(--line); stroke-width: 1; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: 0; margin: .5rem 0;
font-size: .9rem; }}
.legend li {{ display: flex; align-items: center; gap: .4rem; }}
.legend svg {{ flex: none; width: 26px; height: 10px; }} .legend span {{ color: var(--ink); }}
.end {{ margin-top: 3rem; }}
.strips + details {{ margin-top: 1rem; }}
.strips {{ display: grid; gap: 1.1rem; }}
.strips .scroll {{ margin: .2rem 0 0; }}
.strips img {{ display: block; width: 100%; max-width: 1042px; min-width: 620px; height: auto; border-radius: 4px; }}
pre {{ background: var(--raised); border-radius: 8px; padding: .8rem 1rem; overflow: auto; font-size: .85rem;
line-height: 1.5; margin: .5rem 0; max-height: 60vh; }}
pre.command {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
code, pre {{ font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }}
dl {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 210px), 1fr)); gap: .5rem 1.5rem; margin:
.8rem 0; }}
dt {{ color: var(--muted); font-size: .82rem; }} dd {{ margin: 0; font-size: .93rem; }}
details {{ border-top: 1px solid var(--line); }}
details > summary {{ cursor: pointer; padding: .65rem 0; font-weight: 550; }}
details > summary small {{ font-weight: 400; margin-left: .4rem; }}
details[open] {{ padding-bottom: 1.4rem; }}
details h2 {{ font-size: 1.02rem; margin-top: 1.8rem; }}
@media (max-width: 560px) {{ body {{ padding-top: 1.4rem; }} h1 {{ font-size: 1.4rem; }}
.verdict strong {{ font-size: 1.2rem; }} th, td {{ padding: .4rem .55rem; }} }}
@media print {{ body {{ max-width: none; }} details > * {{ display: block; }} pre {{ max-height: none; }} }}
"""


BASE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
{% block body %}{% endblock %}
<p class="note end">Written by scripts/report.py of segdpo {{ version }} from the files of the runs. Brackets are 95 %
intervals.</p>
</body>
</html>
"""

PARTS = """
{% macro verdict(said) %}
<div class="verdict {{ said.tone }}"><strong>{{ said.lead }}</strong><p>{{ said.rest }}</p></div>
{% endmacro %}

{% macro missing(lines) %}{% if lines %}
<section class="missing"><h2>What is missing</h2><ul>
{% for line in lines %}<li>{{ line }}</li>
{% endfor %}</ul></section>
{% endif %}{% endmacro %}

{% macro figures(each) %}<div class="figures">
{% for figure in each %}<figure><figcaption>{{ figure.title }}</figcaption>{{ figure.svg }}
{% if figure.note %}<small>{{ figure.note }}</small>{% endif %}</figure>
{% endfor %}</div>{% endmacro %}

{% macro cell(pair, tone="") %}
<td{% if tone %} class="{{ tone }}"{% endif %}>{{ pair[0] }}
{%- if pair[1] %}<small>{{ pair[1] }}</small>{% endif %}</td>
{% endmacro %}

{% macro head(names) %}<thead><tr>
{% for name in names %}<th scope="col">{{ name }}</th>
{% endfor %}</tr></thead>{% endmacro %}

{% macro table(names, rows) %}<div class="scroll" tabindex="0"><table>{{ head(names) }}<tbody>
{% for row in rows %}<tr><th scope="row">{{ row[0] }}</th>
{% for value in row[1:] %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endmacro %}

{% macro pairs(rows) %}<dl>
{% for name, value in rows %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}</dl>{% endmacro %}

{% macro command(text) %}{% if text %}<pre class="command">{{ text }}</pre>
{% else %}<p class="note">The command is not known.</p>{% endif %}{% endmacro %}
"""

RUN = """
{% from "parts" import figures, cell, head, table, pairs, command %}
{% macro results(run) %}
<h2>Results on the test images</h2>
{% if run.rows %}
<div class="scroll" tabindex="0"><table>
{{ head(["metric", "reference", "policy", "difference", "better", "worse", "Wilcoxon p", "n"]) }}<tbody>
{% for row in run.rows %}<tr><th scope="row">{{ row.name }}</th>
{{ cell(row.reference) }}{{ cell(row.policy) }}{{ cell(row.difference, row.tone) }}
<td>{{ row.better }}</td><td>{{ row.worse }}</td><td>{{ row.p }}</td><td>{{ row.n }}</td></tr>
{% endfor %}</tbody></table></div>
<p class="note">Difference: policy − reference, image by image; better, worse and n count images. Green and red: the
interval leaves out 0. {{ run.displaced }}</p>
{% else %}<p class="note">No results.</p>{% endif %}
{% endmacro %}

{% macro strip(picture) %}
<figure><div class="scroll" tabindex="0">
<img src="{{ picture.overlay.uri }}" alt="{{ picture.id }}: image, gold, reference and policy"
 width="{{ picture.overlay.size[0] }}" height="{{ picture.overlay.size[1] }}"></div>
<small>{{ picture.id }}{% if picture.said %} · {{ picture.said }}{% endif %}</small></figure>
{% endmacro %}

{% macro strips(run, kind, title) %}{% if kind in run.pictures %}
{% set pictures = run.pictures[kind] %}
<h3>{{ title }}</h3><div class="strips">{% for picture in pictures[:3] %}{{ strip(picture) }}{% endfor %}</div>
{% if pictures[3:] %}<details><summary>{{ pictures[3:] | length }} more</summary><div class="strips">
{% for picture in pictures[3:] %}{{ strip(picture) }}{% endfor %}</div></details>{% endif %}
{% endif %}{% endmacro %}

{% macro tax(run) %}
<h2>Alignment tax: what got worse</h2>
{% if run.tax %}<p>{{ run.tax }}</p>{% endif %}
{% if run.worst %}{{ table(["image", "reference", "policy", "change in IoU"], run.worst) }}
{% elif run.worst_known %}<p class="note">No image is known to have got worse.</p>
{% else %}<p class="note">Which images got worse is not known: there are no values image by image.</p>{% endif %}
{% endmacro %}

{% macro curves(run) %}
<h2>Over training</h2>
{% if run.curves %}
<p class="note">Thin lines: steps of training; thick ones: smoothed; circles: validation. Grey, dashed: reference.</p>
{{ figures(run.curves) }}
{% else %}<p class="note">No curves were logged.</p>{% endif %}
{% endmacro %}

{% macro images(run) %}
<h2>Image by image</h2>
{% if run.spread %}{{ figures(run.spread) }}{% else %}<p class="note">No values image by image.</p>{% endif %}
<h2>Calibration</h2>
{% if run.calibration %}
<p class="note">On the dashed line the network is right as often as it is sure; below it, it is too sure.</p>
{{ figures(run.calibration) }}
{% else %}<p class="note">Calibration was not measured.</p>{% endif %}
{% if run.pictures %}<h2>Where it got better, and where worse</h2>
{{ strips(run, "better", "Gained most") }}
{{ strips(run, "worse", "Lost most") }}
{{ strips(run, "lowest", "Lowest") }}{% endif %}
{% endmacro %}

{% macro whole(run) %}
{{ results(run) }}
{{ curves(run) }}
{% if not run.brief %}{{ images(run) }}{% endif %}
{{ tax(run) }}
<h2>What was run</h2>
{{ command(run.command) }}
{{ pairs(run.choices) }}
{{ pairs(run.facts) }}
{% if run.classes %}<details><summary>Each class</summary>
{{ table(["class", "metric", "reference", "policy", "difference", "n"], run.classes) }}</details>{% endif %}
{% if run.files.config_text and not run.brief %}<details><summary>The whole configuration</summary>
<pre tabindex="0">{{ run.files.config_text }}</pre></details>{% endif %}
{% endmacro %}
"""

ONE = """
{% extends "base" %}{% from "parts" import verdict, missing %}{% from "run" import whole %}
{% block body %}
<h1>{{ run.title }}</h1><p class="where">{{ where }}</p>
{{ verdict(run.verdict) }}
{{ missing(run.missing) }}
{{ whole(run) }}
{% endblock %}
"""

MANY = """
{% extends "base" %}{% from "parts" import verdict, missing, figures, cell, head, command %}
{% from "run" import whole %}
{% block body %}
<h1>{{ sweep.title }}</h1><p class="where">{{ where }}</p>
{{ verdict(sweep.verdict) }}
<p class="note">{{ sweep.facts }}</p>
{{ missing(sweep.missing) }}
<h2>Results over seeds</h2>
{% if sweep.table.rows %}
<div class="scroll" tabindex="0"><table>{{ head(["group"] + sweep.table.names) }}<tbody>
{% for name, cells in sweep.table.rows %}<tr><th scope="row">{{ name }}</th>
{% for each in cells %}{{ cell([each.said, each.below], each.tone) }}{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p class="note">Means over the runs of a group, with Student’s interval; a single run has none. Difference: policy −
reference of the same run, IoU on the test images.{% if "over seeds and images" in sweep.table.names %} Over seeds and
images: the same difference with an interval for other seeds and other test images.{% endif %}</p>
{% for line in sweep.held %}<p class="note">{{ line }}</p>
{% endfor %}
{{ figures(sweep.seeds) }}
<p class="note">Points: runs; circle and line: mean and interval of the group.</p>
{% else %}<p class="note">No run came to its end.</p>{% endif %}
<h2>Over training</h2>
{% if sweep.curves %}<ul class="legend">
{% for bundle in sweep.bundles %}<li class="{{ bundle.colour }}"><svg viewBox="0 0 26 10"><line x1="1" x2="25" y1="5"
 y2="5" stroke="currentColor" stroke-width="3" stroke-dasharray="{{ bundle.dashes or 'none' }}"/></svg>
<span>{{ bundle.name }}</span></li>
{% endfor %}</ul>
<p class="note">Thin lines: runs; thick ones: their mean.</p>
{{ figures(sweep.curves) }}
{% else %}<p class="note">No curves were logged.</p>{% endif %}
<h2>What was run</h2>
{{ command(sweep.command) }}
<h2>The runs</h2>
{% if sweep.brief %}
<p class="note">In brief; python scripts/report.py RUN shows one whole, with its pictures.</p>{% endif %}
{% for name, run in sweep.runs %}<details id="run-{{ loop.index }}">
<summary>{{ name or run.title }}<small class="{{ run.verdict.tone }}">{{ run.verdict.lead }}</small></summary>
<p class="where">{{ run.files.folder }}</p>
{{ verdict(run.verdict) }}{{ missing(run.missing) }}{{ whole(run) }}</details>
{% endfor %}
{% endblock %}
"""

TEMPLATES = {"base": BASE, "parts": PARTS, "run": RUN, "one": ONE, "many": MANY}


Progress = Callable[[Sequence[Path]], Iterable[Path]]


def find_runs(path: Path) -> list[Path]:
    """Return the folder itself if it is a run's, else the runs below it, 2 before 10."""
    if is_run(path):
        return [path]
    names = (".hydra/overrides.yaml", "summary.json", "metrics.csv")
    levels = {"overrides.yaml": 2}
    found = {
        file.parents[levels.get(file.name, 1) - 1] for name in names for file in path.rglob(name) if file.is_file()
    }
    # A run's own evaluation/ has a summary.json too.
    return sorted((run for run in found if not found & set(run.parents)), key=lambda run: natural(str(run)))


def report(
    paths: Sequence[Path], progress: Progress = iter, *, dense: str | None = None, against: str | None = None
) -> str:
    """Return the page about one run, several runs, or the runs of sweeps.

    `dense`: the group trained on dense gold masks, of which others recover a part; `against`: a group that all others
    are held against, seed by seed.

    Raises:
        FileNotFoundError: one of the paths is no folder, or holds no run.
        ValueError: there is no group called `dense` or `against`.
    """
    runs = [run for path in paths for run in _runs_of(path)]
    runs = list(dict.fromkeys(runs))
    read = [read_files(run) for run in progress(runs)]
    if len(paths) == 1 and is_run(paths[0]):
        return one_page(read[0])
    view = sweep_view(
        read,
        paths[0].resolve().name if len(paths) == 1 else f"{len(read)} runs",
        planned=[path for path in paths if not is_run(path)],
        dense=dense,
        against=against,
    )
    return _page("many", title=view.title, where=", ".join(map(str, paths)), sweep=view)


def one_page(files: RunFiles) -> str:
    """Return the page about one run."""
    view = view_of(files)
    return _page("one", title=view.title, where=str(files.folder), run=view)


def _runs_of(path: Path) -> list[Path]:
    if not path.is_dir():
        raise FileNotFoundError(f"Expected the folder of a run or a sweep but there is no folder {path}.")
    runs = find_runs(path)
    if not runs:
        raise FileNotFoundError(
            f"Expected a run or a sweep in {path} but found neither summary.json, config.yaml, metrics.csv nor .hydra/ "
            "there or below; give a folder that train.py wrote, such as outputs/DATE/TIME or multirun/NAME."
        )
    return runs


def _page(template: str, **values: object) -> str:
    environment = Environment(
        loader=DictLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(style=Markup(STYLE), version=_version(), **values)
    # Names of files need not be Unicode; what is not becomes a question mark.
    return page.strip().encode("utf-8", "replace").decode("utf-8") + "\n"


def _version() -> str:
    try:
        return version("segdpo")
    except PackageNotFoundError:
        return "of a checkout"
