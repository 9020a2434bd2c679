"""report.html: one file that tells a run to somebody who was not there."""

from fl_app.page.document import page

__all__ = ["page"]
