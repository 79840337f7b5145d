"""Search, measure, log: which config each kernel gets. budget, record, lookup and log are formats, free of TVM."""
