// Runs before the page is drawn, so that a chosen theme doesn't flash.
try {
  const theme = localStorage.getItem('ragfm/theme');
  if (theme === 'dark' || theme === 'light') document.documentElement.dataset.theme = theme;
} catch {
  // storage is blocked: the system's theme it is
}
