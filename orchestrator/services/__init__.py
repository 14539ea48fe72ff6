"""One function per use case. A `with ctx.uow()` block is one transaction. Slow calls run between blocks."""
