"""The report's style: one column, calm, light or dark as the reader's system is, no font or file from elsewhere."""

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
