/* Curves of losses. */
"use strict";

/** Draw on a plot: lines, [[class, [[x, y], …]], …]; horizontal lines, [[class, y], …]; the unit of x; and a vertical
 * line at x = marker. */
function drawChart(plot, lines, references, unitName, marker = undefined) {
  // As large as it is on the screen, in units of a sixteenth of a rem: letters keep their size on a narrow screen.
  const unit = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
  const width = Math.max(240, plot.clientWidth / unit), height = Math.max(200, plot.clientHeight / unit);
  const left = 44, right = 28, top = 14, bottom = 46, points = lines.flatMap(([, list]) => list);
  const yRange = extent([...points.map(([, y]) => y), ...references.map(([, y]) => y)], 0.04);
  const xRange = [0, Math.max(1, ...points.map(([x]) => x))];
  const x = scale(xRange, left, width - right), y = scale(yRange, height - bottom, top);
  plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
  plot.replaceChildren();
  const rule = (x1, x2, y1, y2, kind) => plot.append(svg("line", { x1, x2, y1, y2, class: kind }));
  for (const mark of marks(...yRange)) {
    rule(left, width - right, y(mark), y(mark), "rule");
    plot.append(svg("text", { x: left - 8, y: y(mark) + 5, class: "end" }, String(mark)));
  }
  for (const mark of marks(...xRange, width / 130)) {
    plot.append(svg("text", { x: x(mark), y: height - bottom + 22, class: "middle" }, mark.toLocaleString("en")));
  }
  plot.append(svg("text", { x: (left + width) / 2, y: height - 6, class: "middle" }, unitName));
  for (const [kind, value] of references) rule(left, width - right, y(value), y(value), `line ${kind}`);
  if (marker !== undefined) rule(x(marker), x(marker), top, height - bottom, "line marker");
  for (const [kind, list] of lines) {
    const corners = list.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`);
    plot.append(svg("polyline", { points: corners.join(" "), class: `line ${kind}` }));
    for (const point of list.length < 40 ? list : []) {
      plot.append(svg("circle", { cx: x(point[0]), cy: y(point[1]), r: 3.5, class: kind }));
    }
  }
}

/** The keys of a chart: [[name, class], …]. */
function chartKeys(names) {
  return names.map(([name, kind]) => html("span", { class: "key" }, html("span", { class: `dash ${kind}` }), name));
}
