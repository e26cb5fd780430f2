// Light, dark, or as the system; remembered in this browser.

const NAMES = { "": "as the system", light: "light", dark: "dark" };
const NEXT = { "": "dark", dark: "light", light: "" };

export function setUpTheme(button) {
  let theme = read();
  const apply = () => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    button.setAttribute("aria-label", `Colours: ${NAMES[theme]}`);
    button.title = `Colours: ${NAMES[theme]}`;
  };
  button.addEventListener("click", () => {
    theme = NEXT[theme];
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // A browser that keeps nothing forgets this, too.
    }
    apply();
  });
  apply();
}

function read() {
  try {
    const kept = localStorage.getItem("theme") ?? "";
    return kept in NAMES ? kept : "";
  } catch {
    return "";
  }
}
