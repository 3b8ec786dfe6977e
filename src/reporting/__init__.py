"""Run directories as tables, figures and a page that anyone can open."""
