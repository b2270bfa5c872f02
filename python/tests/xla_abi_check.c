/* Compiled, not run: holds our declarations against the header that comes with jaxlib. */
#include "xla/ffi/api/c_api.h"
#include "xla_abi.h"

#define SAME_SIZE(ours, theirs) _Static_assert(sizeof(ours) == sizeof(theirs), #ours)
#define SAME_PLACE(ours, a, theirs, b) \
    _Static_assert(offsetof(ours, a) == offsetof(theirs, b) && sizeof(((ours *)0)->a) == sizeof(((theirs *)0)->b), #ours "." #a)
#define SAME_NUMBER(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #ours)

SAME_NUMBER(XLA_MAJOR, XLA_FFI_API_MAJOR);
_Static_assert(XLA_MINOR <= XLA_FFI_API_MINOR, "the interface went back");
SAME_NUMBER(XLA_EXTENSION_METADATA, XLA_FFI_Extension_Metadata);
SAME_NUMBER(XLA_STAGE_INSTANTIATE, XLA_FFI_ExecutionStage_INSTANTIATE);
SAME_NUMBER(XLA_STAGE_EXECUTE, XLA_FFI_ExecutionStage_EXECUTE);
SAME_NUMBER(XLA_IS_BUFFER, XLA_FFI_ArgType_BUFFER);
SAME_NUMBER(XLA_IS_BUFFER, XLA_FFI_RetType_BUFFER);
SAME_NUMBER(XLA_IS_SCALAR, XLA_FFI_AttrType_SCALAR);
SAME_NUMBER(XLA_S32, XLA_FFI_DataType_S32);
SAME_NUMBER(XLA_S64, XLA_FFI_DataType_S64);
SAME_NUMBER(XLA_U32, XLA_FFI_DataType_U32);
SAME_NUMBER(XLA_U64, XLA_FFI_DataType_U64);
SAME_NUMBER(XLA_TRAIT_COMMAND_BUFFER, XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE);

SAME_SIZE(struct xla_extension, XLA_FFI_Extension_Base);
SAME_PLACE(struct xla_extension, size, XLA_FFI_Extension_Base, struct_size);
SAME_PLACE(struct xla_extension, kind, XLA_FFI_Extension_Base, type);
SAME_PLACE(struct xla_extension, next, XLA_FFI_Extension_Base, next);

SAME_SIZE(struct xla_version, XLA_FFI_Api_Version);
SAME_PLACE(struct xla_version, major, XLA_FFI_Api_Version, major_version);
SAME_PLACE(struct xla_version, minor, XLA_FFI_Api_Version, minor_version);

SAME_PLACE(struct xla_metadata, version, XLA_FFI_Metadata, api_version);
SAME_PLACE(struct xla_metadata, traits, XLA_FFI_Metadata, traits);
SAME_PLACE(struct xla_metadata_extension, base, XLA_FFI_Metadata_Extension, extension_base);
SAME_PLACE(struct xla_metadata_extension, metadata, XLA_FFI_Metadata_Extension, metadata);

SAME_SIZE(struct xla_text, XLA_FFI_ByteSpan);
SAME_SIZE(struct xla_scalar, XLA_FFI_Scalar);
SAME_PLACE(struct xla_scalar, type, XLA_FFI_Scalar, dtype);
SAME_PLACE(struct xla_scalar, value, XLA_FFI_Scalar, value);

SAME_SIZE(struct xla_buffer, XLA_FFI_Buffer);
SAME_PLACE(struct xla_buffer, type, XLA_FFI_Buffer, dtype);
SAME_PLACE(struct xla_buffer, data, XLA_FFI_Buffer, data);
SAME_PLACE(struct xla_buffer, rank, XLA_FFI_Buffer, rank);
SAME_PLACE(struct xla_buffer, dims, XLA_FFI_Buffer, dims);

SAME_SIZE(struct xla_values, XLA_FFI_Args);
SAME_PLACE(struct xla_values, count, XLA_FFI_Args, size);
SAME_PLACE(struct xla_values, kinds, XLA_FFI_Args, types);
SAME_PLACE(struct xla_values, values, XLA_FFI_Args, args);
SAME_SIZE(struct xla_values, XLA_FFI_Rets);
SAME_PLACE(struct xla_values, count, XLA_FFI_Rets, size);
SAME_PLACE(struct xla_values, kinds, XLA_FFI_Rets, types);
SAME_PLACE(struct xla_values, values, XLA_FFI_Rets, rets);
SAME_SIZE(struct xla_attributes, XLA_FFI_Attrs);
SAME_PLACE(struct xla_attributes, count, XLA_FFI_Attrs, size);
SAME_PLACE(struct xla_attributes, kinds, XLA_FFI_Attrs, types);
SAME_PLACE(struct xla_attributes, names, XLA_FFI_Attrs, names);
SAME_PLACE(struct xla_attributes, values, XLA_FFI_Attrs, attrs);

SAME_PLACE(struct xla_frame, size, XLA_FFI_CallFrame, struct_size);
SAME_PLACE(struct xla_frame, extensions, XLA_FFI_CallFrame, extension_start);
SAME_PLACE(struct xla_frame, api, XLA_FFI_CallFrame, api);
SAME_PLACE(struct xla_frame, context, XLA_FFI_CallFrame, ctx);
SAME_PLACE(struct xla_frame, stage, XLA_FFI_CallFrame, stage);
SAME_PLACE(struct xla_frame, arguments, XLA_FFI_CallFrame, args);
SAME_PLACE(struct xla_frame, results, XLA_FFI_CallFrame, rets);
SAME_PLACE(struct xla_frame, attributes, XLA_FFI_CallFrame, attrs);
_Static_assert(sizeof(struct xla_frame) <= XLA_FFI_CallFrame_STRUCT_SIZE, "struct xla_frame is longer than what the runtime passes");

SAME_PLACE(struct xla_api, version, XLA_FFI_Api, api_version);
SAME_PLACE(struct xla_api, internal, XLA_FFI_Api, internal_api);
SAME_PLACE(struct xla_api, error_create, XLA_FFI_Api, XLA_FFI_Error_Create);
SAME_PLACE(struct xla_api, stream_get, XLA_FFI_Api, XLA_FFI_Stream_Get);
SAME_SIZE(struct xla_stream_request, XLA_FFI_Stream_Get_Args);
SAME_PLACE(struct xla_stream_request, context, XLA_FFI_Stream_Get_Args, ctx);
SAME_PLACE(struct xla_stream_request, stream, XLA_FFI_Stream_Get_Args, stream);
