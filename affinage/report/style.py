"""The page's stylesheet: one accent, tabular numerals, light and dark, from 360 px to a wide screen."""

STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf7;--card:#fff;--ink:#22201c;--soft:#6c675e;--line:#e4dfd5;
--accent:#b3541e;--idle:#cfc8ba}
@media(prefers-color-scheme:dark){
:root{--paper:#161512;--card:#1e1c19;--ink:#ece8e0;--soft:#a29b8f;--line:#35322d;--accent:#f0975a;--idle:#4d483f}
.heat td.mid.wrong{color:var(--paper)}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:clamp(20px,5vw,64px) clamp(16px,4vw,40px)}
h1,h2,.big{font-family:Charter,"Bitstream Charter","Iowan Old Style",Georgia,"DejaVu Serif",serif;font-weight:600;
letter-spacing:-.01em}
h1{font-size:clamp(1.5rem,4.5vw,2.3rem);line-height:1.2;margin:.2em 0 .3em;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:0 0 .6em}
h3{font-size:.9rem;font-weight:600;margin:0 0 .5em}
p{margin:.4em 0 .9em;max-width:68ch;text-wrap:pretty}
.over,.soft,small{color:var(--soft)}
.over{font-size:.82rem;letter-spacing:.04em}
small,.small{font-size:.84rem}
b.accent{color:var(--accent)}
section{margin-top:clamp(36px,6vw,60px);padding-top:clamp(20px,3vw,30px);border-top:1px solid var(--line)}
.lead{display:grid;grid-template-columns:minmax(220px,auto) minmax(0,1fr);gap:20px clamp(28px,5vw,72px);align-items:start;
margin-top:28px}
.big{font-size:clamp(3.4rem,11vw,5.4rem);line-height:1;color:var(--accent);white-space:nowrap}
.what{margin-top:12px;color:var(--soft);font-size:.92rem}.what b{color:var(--ink);font-weight:600}
.lead p{margin-top:.2em}
.forest{margin:14px 0 0;max-width:640px}
.score{display:grid;grid-template-columns:minmax(150px,34%) 1fr 62px;gap:14px;align-items:center;padding:7px 0;
border-top:1px solid var(--line);font-size:.92rem;line-height:1.3}
.score dt{overflow-wrap:anywhere}.score small{display:block;font-size:.76rem;color:var(--soft)}
.score dd{margin:0}.score .value{text-align:right;white-space:nowrap}
.score.main,.score.kept dt{font-weight:600}.score.main .value{color:var(--accent)}.score small{font-weight:400}
.track{position:relative;height:16px}
.track i{position:absolute;left:0;right:0;top:7px;height:2px;background:var(--line)}
.track u{position:absolute;top:5px;height:6px;min-width:3px;border-radius:3px;background:var(--soft);opacity:.35}
.track b{position:absolute;top:2px;width:12px;height:12px;margin-left:-6px;border-radius:6px;background:var(--soft);
border:2px solid var(--paper)}
.score.kept b,.score.main b,.score.kept u,.score.main u{background:var(--accent)}
.facts{display:flex;flex-wrap:wrap;gap:14px 36px;margin:32px 0 0;padding-top:18px;border-top:1px solid var(--line)}
.facts dt{font-size:.8rem;color:var(--soft)}.facts dd{margin:0;font-size:1rem}
.range{position:relative;height:34px;max-width:460px;margin-top:6px}
.range i{position:absolute;left:0;right:0;top:9px;height:2px;background:var(--line)}
.range u{position:absolute;top:6px;height:8px;min-width:3px;border-radius:4px;background:var(--accent);opacity:.45}
.range b{position:absolute;top:2px;width:4px;height:16px;margin-left:-2px;border-radius:2px;background:var(--accent)}
.range s{position:absolute;top:4px;width:2px;height:12px;background:var(--soft)}
.range span{position:absolute;top:18px;font-size:.74rem;color:var(--soft)}
.range span:last-child{right:0}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:32px 40px}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.9rem}
table.wide{width:100%}
th{font-weight:500;text-align:left}
.list td,.list th{padding:6px 14px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
.list thead th{color:var(--soft);font-size:.8rem;white-space:nowrap}
.list .n{text-align:right;white-space:nowrap}
.list tbody th{min-width:92px;max-width:260px;overflow-wrap:anywhere}
.one{white-space:nowrap}.list td small{display:block;min-width:170px}
.list td.grow{width:40%;min-width:90px}
.bar{display:block;height:9px;margin-top:.45em;border-radius:2px;background:var(--idle);min-width:2px}
.bar.on{background:var(--accent)}
.idle th,.idle td{color:var(--soft)}
.bar+small{margin-top:5px;color:var(--soft)}
.sum th,.sum td{font-weight:600;border-bottom:0}
.net{display:flex;gap:4px;margin:18px 0 6px}
.net div{flex:1 1 0;min-width:0;text-align:center}
.net i{display:block;height:44px;border-radius:4px;background:var(--idle)}
.net .on i{background:color-mix(in srgb,var(--accent) var(--s),var(--paper))}
.net span{display:block;margin-top:6px;font-size:.75rem;color:var(--soft);overflow:hidden;text-overflow:clip;white-space:nowrap}
.net.many{gap:2px}.net.many div:not(:first-child):not(:last-child) span{visibility:hidden}
.net.many span{overflow:visible}.net.many div:last-child span{direction:rtl}
.plot{padding:8px 8px 24px 46px}
.canvas{position:relative;height:230px;border-bottom:1px solid var(--line)}
.square{max-width:340px}.square .canvas{height:260px}
.canvas svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.canvas path{fill:none;vector-effect:non-scaling-stroke;stroke-linejoin:round;stroke-linecap:round}
.grid{stroke:var(--line);stroke-width:1}
.mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 4}
.faint{stroke:var(--accent);stroke-width:1;opacity:.28}
.bold{stroke:var(--accent);stroke-width:2.2}
.base{stroke:var(--soft);stroke-width:1.4;stroke-dasharray:6 5}
.dots{stroke:var(--accent);stroke-width:7}
.dots-kept{stroke:var(--accent);stroke-width:13}
.dots-few{stroke:var(--accent);stroke-width:5;opacity:.45}
.ytick,.xtick,.markword{position:absolute;font-size:.75rem;color:var(--soft);white-space:nowrap;line-height:1}
.ytick{right:100%;margin-right:7px;transform:translateY(-50%)}
.xtick{top:100%;margin-top:7px;transform:translateX(-50%)}
.xtick.first{transform:none}.xtick.last{transform:translateX(-100%)}
.markword{top:0;padding:0 5px;background:var(--paper)}
.heat{border-spacing:0}
.heat td{width:44px;height:32px;min-width:30px;padding:0;text-align:center;font-size:.8rem;border:1px solid var(--paper);
background:var(--card)}
.heat td.wrong{background:color-mix(in srgb,var(--accent) var(--s),var(--card))}
.heat td.right{background:color-mix(in srgb,var(--soft) calc(var(--s)*.55),var(--card))}
.heat td.deep.wrong{color:var(--paper)}
.heat.small td{width:20px;height:20px;min-width:20px}
.heat.tiny td{width:11px;height:11px;min-width:11px;border-width:.5px}
.heat tbody th{padding:0 10px 0 0;text-align:right;max-width:150px;overflow:hidden;text-overflow:ellipsis;
white-space:nowrap;font-size:.8rem;position:sticky;left:0;background:var(--paper)}
.heat.small th{font-size:.74rem;line-height:1.2}.heat.tiny tbody th,.heat.tiny thead th{font-size:9.5px;line-height:11px}
.heat tr:hover th{color:var(--accent)}
.heat thead th{vertical-align:bottom;text-align:center;font-size:.8rem;padding:0 0 4px}
.heat thead th span{display:inline-block;writing-mode:vertical-rl;transform:rotate(180deg);max-height:130px;
overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.heat thead th.short span{writing-mode:horizontal-tb;transform:none}
.heat .corner,.heat.tiny thead .corner{color:var(--soft);font-size:.74rem;font-weight:400;text-align:right;
padding:0 10px 4px 0;white-space:nowrap}
.gap{margin-top:34px}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;vertical-align:-.05em;margin-right:.3em}
.wrongs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,230px),1fr));gap:14px}
.wrongs.pictures{grid-template-columns:repeat(auto-fill,minmax(min(44%,150px),1fr))}
.wrongs figure{margin:0;padding:14px;background:var(--card);border:1px solid var(--line);border-radius:8px;
display:flex;flex-direction:column;
overflow-wrap:anywhere;min-width:0}
.wrongs blockquote{margin:0 0 12px;font-size:.92rem;line-height:1.45;flex:1}
.wrongs img{width:100%;height:130px;object-fit:contain;margin-bottom:10px;border-radius:4px}
.wrongs img.tiny{image-rendering:pixelated}
.wrongs audio{width:100%;height:34px;margin-bottom:10px}
.aligned{display:flex;flex-wrap:wrap;gap:4px 10px;margin-bottom:10px;font-size:.92rem;line-height:1.35}
.wrongs figcaption{font-size:.82rem;line-height:1.45}
.wrongs figcaption small{display:block;font-size:.75rem}
.wrongs.scenes{grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}
.scene{position:relative;margin-bottom:10px}.scene img{display:block;width:100%;height:auto;margin:0}
.scene svg{position:absolute;inset:0;width:100%;height:100%}
.scene rect{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}
.scene .found{stroke:#f4f1ea;stroke-width:1.5}.scene .missed{stroke:#ff7a2f;stroke-dasharray:5 4}.scene .false{stroke:#ff7a2f}
ul.found{list-style:none;padding:0;margin:0;max-width:76ch}
ul.found li{padding:8px 0;border-bottom:1px solid var(--line);display:grid;grid-template-columns:5.2em 1fr;gap:10px}
ul.found .loud{color:var(--accent);font-weight:600}
details{margin-top:12px}summary{cursor:pointer;color:var(--soft);padding:6px 0}
footer{margin-top:60px;color:var(--soft);font-size:.82rem}
.notice{padding:10px 14px;border-left:3px solid var(--accent);background:var(--card)}
code{font:.88em ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
@media(max-width:720px){.lead{grid-template-columns:1fr}}
@media(max-width:560px){.list{font-size:.84rem}.list td,.list th{padding-right:9px}
.list:not(.costs) .grow,.list:not(.costs) thead th:last-child:empty{display:none}.score{grid-template-columns:1fr 58px}
.score .track{grid-row:2;grid-column:1/-1}.heat tbody th{max-width:104px}}
@media print{body{background:#fff}section{break-inside:avoid}}
"""
