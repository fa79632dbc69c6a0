#![no_main]
kybernate_fuzz::target!(kybernate_oci, "seek_table");
