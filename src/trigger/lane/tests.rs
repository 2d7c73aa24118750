mod bounds;
mod keys;
