"Packaging: everything about the package is read from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from shutil import copy2, rmtree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg, readme = config['DEFAULT'], Path('README.md')
EXTRAS = ('dev', 'tensorboard', 'timm', 'streets', 'video', 'onnx', 'submitit', 'remote')


class BuildWithNotebooks(build_py):
    "A built package carries the notebooks, so that a run needs no repository; an editable one finds them in nbs/."

    def run(self):
        package = Path(self.build_lib)/cfg['lib_name']
        if self.editable_mode:
            super().run()
            return
        rmtree(package, ignore_errors=True)   # nothing of an earlier build
        super().run()
        nbs = Path(cfg['nbs_path'])
        for notebook in [*nbs.rglob('[0-9]*.ipynb'), *nbs.glob('results/*.json')]:
            copy = package/'nbs'/notebook.relative_to(nbs)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy2(notebook, copy)


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    keywords=cfg['keywords'].split(),
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=[cfg['lib_name'], f"{cfg['lib_name']}.*"]),
    package_data={cfg['lib_name']: ['presets/*.toml', 'templates/*', 'py.typed', '*.pyi']},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require={name: cfg[f'{name}_requirements'].split() for name in EXTRAS},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    cmdclass={'build_py': BuildWithNotebooks},
    zip_safe=False,
)
