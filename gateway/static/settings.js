// The settings in the bar of every page: the theme, and the token that calls are sent with.
const byId = (id) => document.getElementById(id);
const field = byId("token");

export const token = () => field.value;

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("gristmill-theme", root.dataset.theme);
});
field.value = sessionStorage.getItem("gristmill-token") ?? "";
field.addEventListener("input", () => sessionStorage.setItem("gristmill-token", field.value));
