"""Style sheets, scripts and pictures of the pages, with those of others pinned by `vendor.lock.json`."""
