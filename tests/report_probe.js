/* What test_report_page.py asks of a page that one expression cannot say. */
({
  /* Pairs of elements a selector finds that lie on one another, beyond the slack of their boxes. */
  overlaps(selector) {
    const every = [...document.querySelectorAll(selector)];
    const boxes = every.map((e) => [e.textContent, e.getBoundingClientRect()]);
    const apart = (x, y) =>
      Math.min(x.right, y.right) - Math.max(x.left, y.left) <= 1 ||
      Math.min(x.bottom, y.bottom) - Math.max(x.top, y.top) <= 3;
    return boxes.flatMap(([a, x], i) =>
      boxes.slice(i + 1).filter(([, y]) => !apart(x, y)).map(([b]) => `${a} / ${b}`)
    );
  },

  /* The least WCAG contrast ratio of the text of each selector against what is behind it. */
  contrast(selectors) {
    const numbers = (color) => color.match(/[\d.]+/g).map(Number);
    const linear = (x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) =>
      0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const behind = (e) => {
      for (; e; e = e.parentElement) {
        const color = numbers(getComputedStyle(e).backgroundColor);
        if (color.length < 4 || color[3] > 0) return color;
      }
      return [255, 255, 255];
    };
    const ratio = (e) => {
      const style = getComputedStyle(e), svg = e.namespaceURI.endsWith("svg");
      const pair = [numbers(svg ? style.fill : style.color), behind(e)].map(luminance);
      return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    };
    const least = (selector) => Math.min(...[...document.querySelectorAll(selector)].map(ratio));
    return Object.fromEntries(selectors.map((selector) => [selector, least(selector)]));
  },

  /* Controls and drawings that a screen reader could not name. */
  unnamed() {
    const kinds = "button, select, input, [role=button], [role=img], [role=grid]";
    return [...document.querySelectorAll(kinds)]
      .filter((e) => !(e.labels && e.labels.length) && !e.ariaLabel && !e.textContent.trim())
      .map((e) => e.outerHTML);
  },

  loadImage(url) {
    return new Promise((done) => {
      const image = new Image();
      image.onload = image.onerror = () => done(image.naturalWidth);
      image.src = url;
    });
  },
})
