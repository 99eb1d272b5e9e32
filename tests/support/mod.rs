pub mod registry_double;
