/*
 * Status codes, error messages, version and the export macro.
 *
 * Every fallible call returns an hr_status. On failure the calling thread's message, read with
 * hr_last_error(), says what was wrong, with the offending value, and what would be accepted.
 * The library never prints, aborts or exits.
 */
#ifndef HEADROOM_STATUS_H
#define HEADROOM_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define HR_API __attribute__((visibility("default")))
#define HR_PRINTF(format_index, first_argument)                                                    \
    __attribute__((format(printf, format_index, first_argument)))
#define HR_NODISCARD __attribute__((warn_unused_result))
#else
#define HR_API
#define HR_PRINTF(format_index, first_argument)
#define HR_NODISCARD
#endif

/*
 * Of the headers; hr_version() is that of the library. While the major version is 0, a new minor
 * version may change declarations and struct layouts, and libheadroom.so then has another soname.
 * HR_VERSION is for #if: 1.2.3 is 10203. The build takes the version from here.
 */
#define HR_VERSION_MAJOR 0
#define HR_VERSION_MINOR 1
#define HR_VERSION_PATCH 0
#define HR_VERSION (HR_VERSION_MAJOR * 10000 + HR_VERSION_MINOR * 100 + HR_VERSION_PATCH)

/* 0 is success; every error is negative. Values are stable. */
typedef enum hr_status {
    HR_OK = 0,
    HR_ERROR_INVALID_ARGUMENT = -1, /* a value the call can never accept */
    HR_ERROR_UNSUPPORTED = -2,      /* meaningful, but no kernel or format here does it */
    HR_ERROR_OUT_OF_MEMORY = -3,
    HR_ERROR_IO = -4,        /* the operating system refused: missing file, full disk, ... */
    HR_ERROR_FORMAT = -5,    /* a file's content is malformed */
    HR_ERROR_NOT_FOUND = -6, /* a layer, tensor, kernel or preset of that name does not exist */
    HR_ERROR_MISMATCH = -7,  /* two inputs do not belong together: shapes, layouts, models */
    HR_ERROR_NUMERIC = -8,   /* NaN or infinity where a finite value is needed */
    HR_ERROR_DEVICE = -9     /* no driver, no device, or the device failed */
} hr_status;

/* Static, never NULL: "ok", "invalid argument", ... */
HR_API const char *hr_status_string(hr_status status);

/*
 * The message of the last failed call on this thread; "" when none failed. Owned by the library,
 * valid until the thread's next failing call.
 */
HR_API const char *hr_last_error(void);

/* "0.1.0" */
HR_API const char *hr_version(void);

#ifdef __cplusplus
}
#endif

#endif
