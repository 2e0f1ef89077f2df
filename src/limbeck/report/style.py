"""The style of a page: light, dark and printed, from a phone to a wide screen."""

__all__ = ["STYLE"]

STYLE = (
    """
:root{color-scheme:light dark;--paper:#fdfdfb;--ink:#1b1e22;--soft:#585f67;--rule:#dcdcd5;
--faint:#f3f3ee;--c0:#0a6a8a;--c1:#b04a12;--c2:#4a7a1e;--c3:#7d3f98;--c4:#8a6a00;--c5:#a3174f}
@media(prefers-color-scheme:dark){:root{--paper:#16181b;--ink:#e8e8e4;--soft:#a5acb3;
--rule:#34383d;--faint:#1f2226;--c0:#5cb8d6;--c1:#f0905a;--c2:#9ac66a;--c3:#c99be0;--c4:#d9b650;
--c5:#f08ab2}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0 auto;padding:3rem 1.25rem 4rem;max-width:50rem;background:var(--paper);
color:var(--ink);font:1rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
h1,h2,.lead{font-family:Charter,"Bitstream Charter","Sitka Text",Cambria,Georgia,serif}
h1,h2{text-wrap:balance}
h1{font-size:clamp(1.7rem,5vw,2.3rem);line-height:1.2;margin:0 0 1rem;font-weight:600}
h2{font-size:1.3rem;line-height:1.3;margin:3.25rem 0 .75rem;font-weight:600}
h3{font-size:1rem;margin:0;font-weight:600}
p{margin:.6rem 0;max-width:42rem}
a{color:var(--c0);text-underline-offset:.15em}
.kind{margin:0 0 .4rem;color:var(--soft);font-size:.875rem;letter-spacing:.04em}
.lead{font-size:1.2rem;line-height:1.55}
.note,figcaption,footer{color:var(--soft);font-size:.9rem}
footer{margin-top:4rem;border-top:1px solid var(--rule);padding-top:1rem}
figure{margin:1.25rem 0}
.many{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(21rem,100%),1fr));
gap:1.75rem 2rem}
.many figure{margin:0;min-width:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.95rem}
caption span{display:block;max-width:min(42rem,calc(100vw - 2rem))}
caption{text-align:left;color:var(--soft);font-size:.9rem;padding-bottom:.5rem}
th,td{padding:.45rem .9rem .45rem 0;text-align:left;vertical-align:baseline;
border-bottom:1px solid var(--rule)}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--soft);font-weight:500;font-size:.875rem}
tbody th{font-weight:600}
.n{text-align:right;white-space:nowrap}
.best td,.best th{font-weight:650}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.45rem 1.5rem;
margin:.75rem 0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere;min-width:0}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:.9em}
pre{background:var(--faint);border:1px solid var(--rule);border-radius:.35rem;margin:.75rem 0;
padding:.7rem .9rem;white-space:pre-wrap;overflow-wrap:anywhere}
.word{display:inline-block;max-width:100%}
svg{display:block;overflow:visible}
svg text{fill:var(--ink);font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;
font-variant-numeric:tabular-nums}
svg text{paint-order:stroke;stroke:var(--paper);stroke-width:6px;stroke-linejoin:round}
svg .soft{fill:var(--soft)}
svg .name{font-weight:600;font-size:14px}
svg .rule{stroke:var(--rule);stroke-width:1}
svg .mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:4 3}
svg .line{fill:none;stroke-width:1.75;stroke-linejoin:round}
.key{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;color:var(--soft);font-size:.9rem}
.key svg{display:inline-block;vertical-align:middle;margin-right:.4rem}
.key span{display:inline-flex;align-items:center}
.halves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(19rem,100%),1fr));
gap:0 2.5rem;align-items:center}
.halves figure{margin:1rem 0}
.square{max-width:22rem}
.dots .plot{width:100%;min-width:6rem}
.dots td,.dots tbody th{border-bottom:0;padding-top:.1rem;padding-bottom:.1rem;
vertical-align:middle}
.dots .plot{padding-right:1.4rem}
.dots th .n,.dots .n svg{display:inline-block;vertical-align:-.15em;margin-right:.35rem}
.dots tbody th{font-weight:500}
.who{display:block;width:max-content;max-width:min(10rem,26vw);overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:1.5rem 1.25rem;
margin:1.25rem 0;padding:0;list-style:none}
.cards li{min-width:0;break-inside:avoid}
.cards img{display:block;width:6rem;height:6rem;object-fit:contain;background:var(--faint);
border:1px solid var(--rule);border-radius:.35rem}
.cards .crisp{image-rendering:pixelated}
.cards dl{grid-template-columns:max-content 1fr;gap:.1rem .5rem;margin:.5rem 0 0;font-size:.85rem}
.cards dd{margin:0}
.cards dd span{color:var(--soft);white-space:nowrap}
.cards b{font-weight:600}
.cards p{color:var(--soft);font-size:.85rem;margin:.35rem 0 0}
.wide{grid-template-columns:repeat(auto-fill,minmax(min(15rem,100%),1fr));gap:2rem 1.75rem}
.wide p{margin:0}
.cards .values{grid-template-columns:1fr max-content;margin-top:.6rem;padding-top:.5rem;
border-top:1px solid var(--rule);font-variant-numeric:tabular-nums}
.values dd{text-align:right}
.cards .yes{color:var(--c2)}
.cards .no{color:var(--c5)}
.strip{margin:1.5rem 0 0}
.strip img{width:100%;max-width:22rem;image-rendering:pixelated;display:block}
@media(max-width:30rem){body{padding:1.75rem 1rem 3rem}dl{grid-template-columns:1fr;gap:0}
dd{margin-bottom:.6rem}.lead{font-size:1.1rem}th,td{padding-right:.45rem}
table{font-size:.8rem}.dots thead .n svg{display:block;margin:0 0 0 auto}}
@media(prefers-color-scheme:dark){.strip img{filter:invert(1)}}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--soft:#444;--rule:#bbb;--faint:#fff;
--c0:#0a6a8a;--c1:#b04a12;--c2:#4a7a1e;--c3:#7d3f98;--c4:#8a6a00;--c5:#a3174f}
body{max-width:none;padding:0;font-size:10.5pt}figure,tr,dd,pre{break-inside:avoid}
h2,h3{break-after:avoid}h2{margin-top:1.75rem}.strip img{filter:none}}
"""
    + "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(6))
    + ".grey{--c:var(--soft)}"
)
