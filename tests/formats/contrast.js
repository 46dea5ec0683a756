/* The contrast of every text on the page with what lies behind it, by the formula of WCAG 2.1; those below 4.5. */
() => {
  const parse = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
  const over = (top, base) => [0, 1, 2].map((c) => top[c] * (top[3] ?? 1) + base[c] * (1 - (top[3] ?? 1)));
  const mixed = (text) => text.startsWith("color(srgb")
    ? parse(text.slice(10)).map((v, c) => c < 3 ? 255 * v : v) : parse(text);
  const behind = (e) => !e ? parse(getComputedStyle(document.body).backgroundColor)
    : over(mixed(getComputedStyle(e).backgroundColor), behind(e.parentElement));
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, c) => sum + v * [0.2126, 0.7152, 0.0722][c], 0);
  const dim = (e) => !e ? 1 : Number(getComputedStyle(e).opacity) * dim(e.parentElement);
  return [...document.querySelectorAll("main *, header *, footer *")].filter((e) => e.checkVisibility() && !e.disabled
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).flatMap((e) => {
      const style = getComputedStyle(e), back = behind(e);
      const ink = parse(e instanceof SVGElement ? style.fill : style.color);
      const [a, b] = [light(over([...ink.slice(0, 3), dim(e)], back)), light(back)];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      return ratio < 4.5 ? [`${e.outerHTML.slice(0, 60)}: ${ratio.toFixed(2)}`] : [];
  });
}
