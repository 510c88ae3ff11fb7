/* For AddressSanitizer builds: libraries stay loaded, since LeakSanitizer cannot name, nor
 * recognise as reachable, what a driver's library still held when it was unloaded. Linked into
 * every test; with -rdynamic the libraries find this dlclose before the C library's. */
#if defined(__SANITIZE_ADDRESS__)
int dlclose(void *handle);
int dlclose(void *handle)
{
    (void)handle;
    return 0;
}
#else
typedef int keep_loaded_is_empty;
#endif
