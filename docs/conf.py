"""Settings of sphinx for `make site`; `ubrain.report.site` writes its sources."""

project, author, html_title = "ubrain", "The ubrain developers", "ubrain"
extensions = ["myst_nb"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"
exclude_patterns = ["tests", "benchmarks", "ubrain", "**/.sources"]
html_theme = "sphinx_book_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
templates_path = []
html_theme_options = {
    "use_download_button": False,
    "navbar_persistent": [],
    "show_toc_level": 2,
    "home_page_in_toc": True,
}
# Anchors of tables are plain HTML, which sphinx does not see: the built pages are checked instead.
suppress_warnings = ["myst.xref_missing", "myst.header", "mystnb.unknown_mime_type"]
