// Keeps the card of a token inside the window: it is placed below its token, or above where there is more space.
() => {
  const place = (event) => {
    const token = event.target instanceof Element ? event.target.closest(".tx-token") : null;
    const card = token && token.querySelector(":scope > .tx-card");
    if (!card) return;
    const lines = token.getClientRects();
    const line = [...lines].find((each) => event.clientY >= each.top && event.clientY <= each.bottom) || lines[0];
    card.style.position = "fixed";
    card.style.left = "0px";
    card.style.top = "0px";
    requestAnimationFrame(() => {
      const own = card.getBoundingClientRect();
      const shift = { x: own.left, y: own.top }; // of an ancestor that is not the window
      const left = Math.max(4, Math.min(line.left, window.innerWidth - own.width - 4));
      const below = line.bottom + own.height + 4 <= window.innerHeight || line.top < own.height + 4;
      card.style.left = `${left - shift.x}px`;
      card.style.top = `${(below ? line.bottom : line.top - own.height) - shift.y}px`;
    });
  };
  document.addEventListener("mouseover", place);
  document.addEventListener("focusin", place);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.activeElement instanceof HTMLElement) document.activeElement.blur();
  });
}
