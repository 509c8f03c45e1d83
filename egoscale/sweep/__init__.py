"""The grid: what must run (`plan`), where it runs (`local`), what has run (`ledger`). No torch."""
