// Runs before the first paint, so that a chosen theme does not flash.
try {
  const theme = localStorage.getItem('ragfm/theme');
  if (theme === 'dark' || theme === 'light') document.documentElement.dataset.theme = theme;
} catch {
  // storage is blocked: use the system's theme
}
