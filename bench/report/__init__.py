"""One report, four forms: JSON, Markdown, HTML, JUnit."""
