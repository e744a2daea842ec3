"""What tests share: small real servers, programs of their own, and what is made by hand."""
