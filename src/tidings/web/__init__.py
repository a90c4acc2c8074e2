"""What browsers get: native ES modules, pages and styles, served as they are."""
