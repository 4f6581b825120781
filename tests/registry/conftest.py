from tests.tracking.conftest import project, server_uri, sqlite_tracker, template_home, tracker

__all__ = ["project", "server_uri", "sqlite_tracker", "template_home", "tracker"]
