"""The client's side: connections to servers, and the devices, tensors and graphs above them."""
