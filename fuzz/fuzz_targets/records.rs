#![no_main]
kybernate_fuzz::target!(kybernate_shim, "records");
