"""Transport `rdma`: one-sided reads and writes by RDMA NICs, over libibverbs. Importing this needs no library of RDMA."""
