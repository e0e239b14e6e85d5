"""The report's pages as Jinja templates. Everything put into them is escaped, unless it is Markup made here."""

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
