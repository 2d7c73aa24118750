mod bounds;
mod filters;
mod keys;
