// Sets the theme before the first paint: the one chosen, else the system's.
(() => {
  const root = document.documentElement;
  const stored = localStorage.getItem("gristmill-theme");
  if (stored === "light" || stored === "dark") root.dataset.theme = stored;
})();
