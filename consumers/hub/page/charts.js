// What all charts share: colours of the style sheet, and the size of the element they are in.

import uPlot from "./vendor/uPlot.esm.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const open = new Set();
dark.addEventListener("change", () => {
  for (const chart of open) chart.redraw(false);
});

// A colour of the style sheet, asked at each drawing: it follows the scheme.
export const colour = (name) => () => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A chart that fills `element`; it goes when `close` is called.
export function chart(element, options, data) {
  const size = () => ({ width: Math.max(40, element.clientWidth), height: Math.max(16, element.clientHeight) });
  const made = new uPlot({ legend: { show: false }, ...options, ...size() }, data, element);
  const fit = () => {
    const { width, height } = size();
    if (open.has(made) && (width !== made.width || height !== made.height)) made.setSize({ width, height });
  };
  // In the next frame: a size that is set within the observer's turn would make it look again.
  const watching = new ResizeObserver(() => requestAnimationFrame(fit));
  watching.observe(element);
  open.add(made);
  made.close = () => {
    watching.disconnect();
    open.delete(made);
    made.destroy();
  };
  return made;
}

// A small line of one column, without axes.
export function sparkline(element) {
  return chart(
    element,
    {
      cursor: { show: false },
      padding: [2, 0, 2, 0],
      axes: [{ show: false }, { show: false }],
      scales: { x: { time: true }, y: { range: (_chart, _low, high) => [0, Math.max(high ?? 0, 0.1)] } },
      series: [{}, { stroke: colour("--line"), fill: colour("--line-fill"), width: 1.5, points: { show: false } }],
    },
    [[], []],
  );
}
