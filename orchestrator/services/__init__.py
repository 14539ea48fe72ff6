"""One function per use case. A `with ctx.uow()` block is one transaction; slow calls stand between blocks, never inside."""
