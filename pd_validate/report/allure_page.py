"""What Allure 3 has no option for in its page: no calls home, and links to the page beside it."""

from __future__ import annotations

import re
from pathlib import Path

from pd_validate.report.reference import ABOUT, link_from_allure

# Allure 3.18 builds this into every page, with no option against it. A report of a lab does
# not call home, and where the address is blocked the page would hang on it.
_ANALYTICS = re.compile(
    r'<script async src="https://www\.googletagmanager\.com/[^"]*"></script>\s*'
    r"<script>\s*window\.dataLayer.*?</script>",
    re.DOTALL,
)
# Allure 3.18 shows links that have no host as plain text. Which one was meant is read at the
# click, since the page re-uses its elements for another test.
_LINK = '[data-testid="test-result-meta-link"]'
_LINKS = f"""
<style>{_LINK}:not(:has(a)) span {{ cursor: pointer; text-decoration: underline }}</style>
<script>
document.addEventListener("click", event => {{
  const link = event.target.closest('{_LINK}:not(:has(a))');
  const text = link ? link.innerText.trim() : "";
  if (text.startsWith("{ABOUT}"))
    window.open("{link_from_allure("")}" + text.slice({len(ABOUT)}), "_blank", "noopener");
}});
</script>
"""


def finish_page(index: Path) -> None:
    """Mend Allure's page in its place. Raises OSError."""
    page = _ANALYTICS.sub("", index.read_text(encoding="utf-8"))
    head, end, tail = page.rpartition("</body>")
    index.write_text(f"{head}{_LINKS}{end}{tail}", encoding="utf-8")
