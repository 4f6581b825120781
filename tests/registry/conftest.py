from tests.tracking.conftest import project, sqlite_tracker, template_home, tracker

__all__ = ["project", "sqlite_tracker", "template_home", "tracker"]
