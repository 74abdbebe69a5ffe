// What keeps people from reading the page or from hearing it read, as lists of complaints.
() => {
  // Controls in sight that a screen reader could only call by their kind.
  const nameless = [...document.querySelectorAll("button, input, select, a, [role]")]
    .filter((each) => each.checkVisibility() && !["status", "alert"].includes(each.getAttribute("role")))
    .filter((each) => {
      const titles = (each.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id));
      const texts = [...(each.labels ?? []), ...titles, each].map((one) => one?.textContent.trim());
      return !each.ariaLabel && !texts.some(Boolean);
    })
    .map((each) => each.outerHTML);

  // Texts in sight whose contrast is below WCAG's 4.5.
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const solid = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b]
    .map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (each) => {
    for (; each; each = each.parentElement) {
      const colour = solid(getComputedStyle(each).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const each = text.parentElement;
    const disabled = each.closest(":disabled, script, noscript");
    if (!text.textContent.trim() || disabled || !each.checkVisibility()) continue;
    const [one, other] = [solid(getComputedStyle(each).color), ground(each)].map(luminance);
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) faint.push(`${text.textContent.trim()}: ${contrast.toFixed(2)}`);
  }
  return { nameless, faint };
}
