"A page as a browser shows it: what a reader would stumble over."
from pathlib import Path

FAULTS = """() => {
  const name = element => element.tagName.toLowerCase() + (element.id && '#' + element.id)
    + [...element.classList].map(one => '.' + one).join('');
  const faults = [];
  for (const image of document.images)
    if (image.complete && !image.naturalWidth) faults.push('broken image: ' + image.src.slice(0, 80));
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) faults.push(`the page scrolls sideways: ${root.scrollWidth} pixels`);
  const outside = [...document.body.querySelectorAll('*:not(svg *, math, math *, code *)')]
    .filter(element => element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 1)
    .filter(element => {
      const style = getComputedStyle(element);
      return !['auto', 'scroll'].includes(style.overflowX) && style.textOverflow != 'ellipsis';
    });
  for (const element of outside)
    if (!outside.some(other => other != element && element.contains(other)))
      faults.push(`text outside its box: ${name(element)} holds ${element.scrollWidth} pixels in `
        + `${element.clientWidth}: ${element.textContent.trim().slice(0, 60)}`);
  return faults;
}"""
AXE = """options => axe.run(document, {resultTypes: ['violations'], ...options}).then(found => found.violations
  .filter(one => ['serious', 'critical'].includes(one.impact))
  .map(one => `${one.id}: ${one.help}: ${one.nodes.length} times, such as ${one.nodes[0].html.slice(0, 200)}`))"""


class Browser:
    "One page of a headless browser without a network, opened at one address after another."
    def __init__(self, page, axe: str):   # of Playwright; the source of axe-core
        self.page, self.axe, self.errors = page, axe, []
        page.on('console', lambda said: said.type == 'error' and self.errors.append(f'{said.text} {said.location}'))
        page.on('pageerror', lambda error: self.errors.append(f'script: {error}'))
        page.on('requestfailed', lambda request: self.errors.append(f'not loaded: {request.url}'))

    def resize(self, width: int):   # pixels
        "Another window around the same page."
        self.page.set_viewport_size(dict(width=width, height=900))

    def open(self, path: Path, width: int = 1440, scheme: str = 'light'):
        "Show a file at a width in pixels, in the light or the dark scheme."
        self.errors.clear()
        self.resize(width)
        self.page.emulate_media(color_scheme=scheme)
        self.page.goto(Path(path).resolve().as_uri())

    def faults(self) -> list[str]:   # one line each
        "What a reader sees go wrong: errors, broken images, a page that scrolls sideways, text outside its box."
        found = [f'{frame.url}: {fault}' for frame in self.page.frames for fault in frame.evaluate(FAULTS)]
        return [*self.errors, *found]

    def violations(self, *rules: str) -> list[str]:   # one line each
        "What axe-core finds serious or critical by the named rules, or by all."
        if not self.page.evaluate('() => !!window.axe'):
            self.page.evaluate(self.axe)
        return self.page.evaluate(AXE, dict(runOnly=list(rules)) if rules else {})
